# Composer in a container. What is installed is installed by the same targets of make as anywhere.
#   docker build --build-arg TORCH_INDEX=URL .     takes PyTorch from another wheel index
FROM python:3.11-slim

RUN apt-get update && apt-get install -y --no-install-recommends make && rm -rf /var/lib/apt/lists/*
WORKDIR /app
ENV PIP_NO_CACHE_DIR=1

# PyTorch changes seldom and is most of the image: a layer of its own.
ARG TORCH_INDEX=
COPY Makefile constraints.txt ./
RUN make .venv/.torch TORCH_INDEX=${TORCH_INDEX}

COPY pyproject.toml constraints-providers.txt requirements-weights.txt README.md LICENSE ./
COPY composer composer
COPY eval eval
COPY experts experts
COPY gateway gateway
COPY routers routers
RUN make setup EXTRAS=all TORCH_INDEX=${TORCH_INDEX}
RUN make providers

RUN useradd --create-home --uid 10001 composer && install -d -o composer -m 700 /var/lib/composer /var/cache/composer
USER composer
ENV PATH=/app/.venv/bin:$PATH \
    COMPOSER_HOST=0.0.0.0 \
    COMPOSER_STATE_DIR=/var/lib/composer \
    COMPOSER_CACHE_DIR=/var/cache/composer
VOLUME ["/var/lib/composer", "/var/cache/composer"]
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health/ready', timeout=4)"]
CMD ["coe", "up"]
