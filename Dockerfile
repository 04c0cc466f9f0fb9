# One worker a GPU: docker build --build-arg EXTRAS=gpu,text,s3 -t hotrefresh-gpu:0.1.0 .
FROM python:3.11.13-slim-bookworm
ARG EXTRAS=cpu,text,s3
WORKDIR /opt/hotrefresh
COPY pyproject.toml constraints.txt README.md ./
COPY orchestrator orchestrator
COPY workers workers
COPY models models
COPY migrations migrations
COPY cli cli
RUN pip install --no-cache-dir -c constraints.txt ".[$EXTRAS]" && useradd --create-home hotrefresh \
    && mkdir /data && chown hotrefresh /data
USER hotrefresh
# A folder of our own: a `models/` in the current directory would shadow the package.
WORKDIR /home/hotrefresh
ENTRYPOINT ["hotrefresh"]
