# The digest is what is pulled; the tag is for readers and for Renovate, which updates both (renovate.json).
FROM python:3.14.8-slim-trixie@sha256:f85c5697265c178cc6887276c55fe16cf3d14ca35c3df6a5eab3b360534a55d2 AS build
RUN python -m venv /opt/otp-stream && python -m venv /opt/build
ENV PATH=/opt/otp-stream/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
# a separate layer, because dependencies rarely change; the file includes every extra
COPY requirements.txt ./
RUN pip install --require-hashes -r requirements.txt
# what builds the wheel is pinned as well, and is not part of the image
COPY requirements-build.txt ./
RUN /opt/build/bin/pip install --require-hashes -r requirements-build.txt
COPY pyproject.toml README.md LICENSE ./
COPY otp_stream otp_stream
COPY templates templates
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist . \
  && pip install --no-deps /dist/*.whl && python -m compileall -q /opt/otp-stream

FROM python:3.14.8-slim-trixie@sha256:f85c5697265c178cc6887276c55fe16cf3d14ca35c3df6a5eab3b360534a55d2
RUN groupadd --gid 10001 otp && useradd --uid 10001 --gid otp --no-create-home --shell /usr/sbin/nologin otp
COPY --from=build /opt/otp-stream /opt/otp-stream
ENV PATH=/opt/otp-stream/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 NODE_ENV=production WORKER=true
WORKDIR /app
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# alive, not ready: a relay that is down is no reason to replace the container
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/livez', timeout=2)"]
CMD ["faststream", "run", "otp_stream.app:app", "--host", "0.0.0.0", "--port", "8000"]
