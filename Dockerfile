# For a machine with an NVIDIA driver and its container toolkit; without `--gpus all` it runs on the CPU.
#   docker build --tag dualrate .
#   docker run --rm --gpus all --ipc host --volume "$PWD:/here" dualrate doctor
#   docker run --rm --gpus all --ipc host --volume "$PWD:/here" dualrate train auto --data.source photos --size tiny
FROM python:3.13-slim
# a compiler, for --compile
RUN apt-get update && apt-get install --yes --no-install-recommends g++
COPY pyproject.toml README.md LICENSE /dualrate/
COPY src /dualrate/src
RUN pip install --no-cache-dir '/dualrate[diffusers,forecast,serve]'
ENV DUALRATE_CACHE=/here/.cache
WORKDIR /here
ENTRYPOINT ["dualrate"]
