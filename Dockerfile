# The image of python_env: docker build -t python-env . && docker run -p 127.0.0.1:8000:8000 python-env
FROM python:3.12-slim

# Which user exists, then what is installed, then our files: what changes least often comes first.
# Hugging Face runs a Space as uid 1000. The files stay root's, so that no one can alter them.
RUN useradd --uid 1000 --no-log-init --no-create-home --home-dir /tmp --shell /usr/sbin/nologin env
RUN PYTHONDONTWRITEBYTECODE=1 pip install --no-cache-dir --no-compile websockets==17.4

WORKDIR /app
# With tasks of your own beside this file, in tasks.jsonl, the image serves those. The star is there
# because COPY passes over a pattern that nothing matches, but not over a name.
COPY python_env.py server.py tasks.jsonl* ./
# The base has no bytecode, and the server may not write any: compile what it and its workers import.
# Readable for every uid, however strict the umask of the checkout was.
RUN chmod -R a+rX . && python -c "import python_env, concurrent.futures.thread; [*map(__import__, python_env.COMMON_MODULES.split())]"

# Each flag of server.py is a variable here: docker run -e PYTHON_ENV_MAX_SESSIONS=32 ...
ENV PYTHON_ENV_HOST=0.0.0.0 PYTHON_ENV_PORT=8000
EXPOSE 8000
USER 1000:1000
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['PYTHON_ENV_PORT']), timeout=4); c.request('GET', '/health'); sys.exit(c.getresponse().status != 200)"]
CMD ["python", "server.py"]
