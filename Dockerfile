# The service on the processor, or with an NVIDIA card where the host gives it one (`--gpus all`).
#
#     docker build -t vision-lm .
#     docker run --rm -p 127.0.0.1:8000:8000 -e VISION_LM_API_KEY=... vision-lm
#
# The wheel is built in a stage of its own, so that the image holds no sources and no build tools.
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY vision_lm vision_lm
COPY projector projector
COPY demo demo
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
COPY --from=build /wheels /wheels
# torch's default wheel brings CUDA's libraries; a processor-only index makes the image some gigabytes smaller:
#     docker build --build-arg PIP_EXTRA_INDEX_URL=<torch's index of CPU wheels> .
ARG PIP_EXTRA_INDEX_URL=
# The compiler is for the processor's kernels, built when the first model is loaded.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir "$(ls /wheels/*.whl)[serve,cuda]" && rm -r /wheels \
    && useradd --create-home --uid 10001 service
USER service
ENV PYTHONUNBUFFERED=1
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
STOPSIGNAL SIGTERM
# 0.0.0.0 is the container's own address: who reaches it is decided by `-p`. Without VISION_LM_API_KEY it refuses to start.
ENTRYPOINT ["vision-lm", "serve", "--host", "0.0.0.0"]
