# pggan-fast for machines with an NVIDIA GPU:
#   docker build -t pggan-fast .
#   docker run --rm --gpus all --shm-size 1g -v "$PWD:/work" pggan-fast train --data DATA --out RUN
# The first stage compiles the CUDA kernels for every GPU, or for those of --build-arg TORCH_CUDA_ARCH_LIST="8.0;9.0";
# no GPU is needed to build. The second has neither compiler nor sources.
ARG CUDA=13.0.2
ARG UBUNTU=24.04

FROM nvidia/cuda:${CUDA}-devel-ubuntu${UBUNTU} AS build
ARG TORCH_CUDA_ARCH_LIST=""
RUN apt-get update && apt-get install -y --no-install-recommends g++ python3-venv && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/pggan-fast
ENV PATH=/opt/pggan-fast/bin:$PATH CUDA_HOME=/usr/local/cuda PIP_NO_CACHE_DIR=1
RUN pip install 'setuptools>=77' 'torch>=2.10'
COPY . /source
RUN TORCH_CUDA_ARCH_LIST="$TORCH_CUDA_ARCH_LIST" PGGAN_FAST_CUDA=1 \
    pip install --no-build-isolation '/source[yaml,tensorboard,video]'

FROM ubuntu:${UBUNTU}
# g++ and Python's headers: Triton and torch.compile compile a launcher when they first run.
RUN apt-get update && apt-get install -y --no-install-recommends g++ python3 python3-dev \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/pggan-fast /opt/pggan-fast
ENV PATH=/opt/pggan-fast/bin:$PATH NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN pggan-fast doctor
WORKDIR /work
ENTRYPOINT ["pggan-fast"]
CMD ["doctor"]
