import sys, time, json, torch
torch.set_num_threads(1)
import dualrate as dr
from dualrate.drawing.choice import Choice
from dualrate.drawing.measure import ensemble_scores
from pathlib import Path
out = Path('runs/ens.jsonl')
n = int(sys.argv[1]); 
for spec in sys.argv[2:]:
    name, steps = spec.split(':'); 
    key = f"{name}:{steps}:{n}"
    if out.exists() and any(json.loads(l)['key']==key for l in out.open()): continue
    model = dr.load(f'runs/super-resolution/{name}-s0')
    c = Choice() if steps == '0' else Choice(steps=int(steps))
    d = c.drawer(model, batch_size=128, members=16, precision='float32')
    a = time.process_time(); s = ensemble_scores(d, range(n)); b = time.process_time() - a
    from dataclasses import replace
    row = dict(key=key, sampler=str(d.step), macs1=replace(d.expected_cost, members=1).macs/1e6, macs16=d.expected_cost.macs/1e6, ms=1000*b/(16*n), crps=s.crps, crps_se=s.errors[0], energy=s.energy, psnr_mean=s.psnr_mean, psnr=s.psnr, spread_skill=s.spread_skill)
    out.open('a').write(json.dumps(row)+'\n'); print({k:(round(v,5) if isinstance(v,float) else v) for k,v in row.items()}, flush=True)
