# clip-jax for NVIDIA GPUs. CUDA comes with JAX's wheels; the machine needs a driver of CUDA 13.
#   docker build -f launch/gpu.Dockerfile -t IMAGE .      (from the root of the repository)
#   docker run --gpus all --shm-size 8g -v /data:/data IMAGE train --config FILE --workdir /data/RUN
FROM python:3.12-slim-bookworm

WORKDIR /opt/clip_jax
COPY setup.py clip_jax_command.py pyproject.toml README.md LICENSE ./
COPY clip_jax ./clip_jax
COPY configs ./configs
RUN pip install --no-cache-dir -e ".[cuda]"

ENV PYTHONUNBUFFERED=1 NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# A SIGTERM reaches clip-jax itself, which saves and leaves with exit code 75.
STOPSIGNAL SIGTERM
ENTRYPOINT ["clip-jax"]
CMD ["--help"]
