import sys, torch
torch.set_num_threads(1)
from dataclasses import replace
import dualrate as dr
from dualrate.recipes.auto import Auto
from dualrate.recipes import tasks
from dualrate.experiment.experiment import DataConfig
from dualrate.training.config import OptimConfig
from dualrate.methods.denoising import DenoisingConfig
from dualrate.data.conditions import task_named
task, name, seconds, seed = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
kind, _, by = name.partition('-')
base = Auto(DataConfig(source='cifar10'), size='tiny', task=task, rate='single')()
big = base.networks.model; medium = tasks.smaller(big, 'medium')
# light of the medium pair: as of the tiny tier
light = tasks.smaller(big, 'light')
cond = task_named(task)
import unittest.mock as m
real = tasks.smaller
def fake(h, size): return light if size == 'light' else real(h, size)
tasks.smaller = fake
heavy = {'dual': medium, 'medium': medium, 'light': light, 'large': big, 'dualbig': big}[kind]
rate = 'dual' if kind.startswith('dual') else 'single'
nets, method = tasks.made(cond, base.shape, heavy, rate, by or 'diffusion')
fit = replace(base.fit, iterations=10**6, batch_size=64, sample_every=10**8, checkpoint_every=400, seed=seed, precision='float32', ema_halflife=20_000, optim=replace(base.fit.optim, decay='cosine', decay_seconds=seconds, warmup=100))
e = replace(base, name=f'{task.split(":")[0]}-{name}-s{seed}', networks=nets, method=method, fit=fit)
dr.train(e, f'runs/{task.split(":")[0]}/{name}-s{seed}')
