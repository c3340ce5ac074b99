# clip-jax for Cloud TPUs, such as those of launch/gke.sh.
#   docker build -f launch/tpu.Dockerfile -t IMAGE .      (from the root of the repository)
FROM python:3.12-slim-bookworm

WORKDIR /opt/clip_jax
COPY setup.py clip_jax_command.py pyproject.toml README.md LICENSE ./
COPY clip_jax ./clip_jax
COPY configs ./configs
# gcsfs: reads and writes gs:// URLs.
RUN pip install --no-cache-dir -e ".[tpu]" gcsfs

ENV PYTHONUNBUFFERED=1
# A SIGTERM reaches clip-jax itself, which saves and leaves with exit code 75.
STOPSIGNAL SIGTERM
ENTRYPOINT ["clip-jax"]
CMD ["--help"]
