#!/usr/bin/env python3
"""Every query of the dashboard returns data: a real kvcaskd under load, scraped by a real
Prometheus (package prometheus), asked what Grafana would ask.

dashboard_test.py KVCASKD KVCASK CACHE PROFILE DASHBOARD
"""
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

DEADLINE_S = 120


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Processes:
    """Children, ended with this."""

    def __init__(self):
        self.children = []

    def start(self, args, **kwargs):
        child = subprocess.Popen(args, **kwargs)
        self.children.append(child)
        return child

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for child in self.children:
            child.terminate()
        for child in self.children:
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                child.kill()


def start_daemon(processes, kvcaskd, tmp):
    """Socket and metrics addresses of a ready daemon."""
    log = open(tmp + "/kvcaskd.log", "w")
    child = processes.start(
        [kvcaskd, "--listen", f"unix:{tmp}/s", "--metrics", "127.0.0.1:0",
         "--memory-budget", "1GiB"], stdout=subprocess.PIPE, stderr=log, text=True)
    metrics = None
    for line in child.stdout:
        if line.startswith("metrics "):
            metrics = re.match(r"metrics http://(.*)/metrics", line).group(1)
        if line.startswith("listening "):
            return line.split()[1], metrics
    sys.exit("kvcaskd ended: " + open(tmp + "/kvcaskd.log").read())


def start_prometheus(processes, target, tmp):
    """The base address of a Prometheus that scrapes `target` each second."""
    with open(tmp + "/prometheus.yml", "w") as f:
        f.write("global: {scrape_interval: 1s}\n"
                "scrape_configs:\n"
                f"  - {{job_name: kvcask, static_configs: [{{targets: ['{target}']}}]}}\n")
    for attempt in range(5):  # somebody may take the port before Prometheus does
        base = f"127.0.0.1:{free_port()}"
        log = open(f"{tmp}/prometheus{attempt}.log", "w")
        child = processes.start(
            ["prometheus", f"--config.file={tmp}/prometheus.yml",
             f"--storage.tsdb.path={tmp}/tsdb{attempt}", f"--web.listen-address={base}"],
            stdout=log, stderr=log)
        while child.poll() is None:
            try:
                urllib.request.urlopen(f"http://{base}/-/ready", timeout=5).read()
                return base
            except OSError:
                time.sleep(0.1)
    sys.exit("prometheus does not start: " + open(log.name).read())


def queries(dashboard):
    """(panel, query) as Grafana would send it for all instances."""
    for panel in json.load(open(dashboard))["panels"]:
        for target in panel["targets"]:
            expr = target["expr"].replace("$__rate_interval", "10s").replace("$instance", ".*")
            yield panel["title"], expr


def has_data(base, expr):
    url = f"http://{base}/api/v1/query?" + urllib.parse.urlencode({"query": expr})
    answer = json.load(urllib.request.urlopen(url, timeout=10))
    assert answer["status"] == "success", answer
    values = [sample["value"][1] for sample in answer["data"]["result"]]
    return any(v not in ("NaN", "+Inf", "-Inf") for v in values)


def load(kvcask, server, cache, profile, tmp, turn):
    """A put and a get of each codec, and a few other calls."""
    def run(*args):
        subprocess.run([kvcask, "--server", server, *args], check=True,
                       stdout=subprocess.DEVNULL)
    for codec in ("raw", "int8", "fklt"):
        session = f"{codec}-{turn}"
        run("put", cache, "--session", session, "--codec", codec,
            *(("--profile", profile) if codec == "fklt" else ()))
        run("get", "--session", session, "--out", f"{tmp}/out")
        run("stat", "--session", session)
        if turn > 3:
            run("rm", f"{codec}-{turn - 3}")


def main():
    kvcaskd, kvcask, cache, profile, dashboard = (os.path.abspath(a) for a in sys.argv[1:])
    tmp = tempfile.mkdtemp(prefix="kvcask", dir="/tmp")  # sockets want short paths
    try:
        with Processes() as processes:
            server, metrics = start_daemon(processes, kvcaskd, tmp)
            base = start_prometheus(processes, metrics, tmp)
            waiting = list(queries(dashboard))
            assert len(waiting) > 15, waiting
            count = len(waiting)
            assert not has_data(base, "kvcask_no_such_metric")
            end = time.monotonic() + DEADLINE_S
            turn = 0
            while waiting and time.monotonic() < end:
                load(kvcask, server, cache, profile, tmp, turn)
                turn += 1
                waiting = [q for q in waiting if not has_data(base, q[1])]
            for panel, expr in waiting:
                print(f"no data: {panel}: {expr}")
            if waiting:
                sys.exit(1)
            print(f"{count} queries of the dashboard return data, after {turn} turns of load")
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


main()
