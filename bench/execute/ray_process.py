"""The process that talks to Ray, between the command line and the workers.

Ray takes over the signals, the output and the working directory of the process that starts it, and some of its
daemons outlive a killed one. So the command line starts this process instead, in a session of its own, and holds its
standard input open: when that closes, for whatever reason, every process of our cluster is killed.

Run as ``python -m bench.execute.ray_process FOLDER``, where the folder holds ``job.json`` and the trials as ``0.json``,
... It leaves ``log.txt``, ``<trial>.error`` for a trial that could not run, and ``done`` at the end of all trials.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from bench.execute.resources import cluster_address

MARK = "CLMERGE_JOB"  #: environment variable by which our processes know each other
GRACE_S = 3.0  #: for the process to go by itself before it is killed

# What Ray reads from the environment. Titles of processes must not overwrite MARK (SPT_NOENV), the working directory
# must stay the user's (CHDIR), nothing is sent anywhere (USAGE), and workers are no less important than a local run,
# where Ray would give them a niceness of 15 and a busy machine then starves them. Each trial is a new thread of its
# worker, and glibc gives each new thread an arena of its own whose free memory the next one does not use: measured,
# 200 MB more a trial, without end; one arena for all keeps a worker as large as its largest trial.
_RAY_ENVIRONMENT = {
    "SPT_NOENV": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "MALLOC_ARENA_MAX": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}


# ---- the command line's side -------------------------------------------------------------------------------------
class RayProcess:
    """The process, as the command line sees it; a context manager that leaves no process behind."""

    def __init__(self, folder: Path, job: dict[str, Any], trials: list[dict[str, Any]]) -> None:
        """Write the job to ``folder`` (``<results>/ray/<job id>``); nothing runs yet."""
        self.folder, self.log = folder, folder / "log.txt"
        folder.mkdir(parents=True)
        # Held as long as this process lives, however it ends: the next command sees by it whom to clean up after.
        self._alive = FileLock(folder / ".lock")
        self._alive.acquire()
        place = {"host": socket.gethostname(), "temporary": tempfile.mkdtemp(prefix="clmerge-", dir=_short_temporary())}
        (folder / "job.json").write_text(json.dumps({**job, **place, "trials": len(trials)}))
        for i, trial in enumerate(trials):
            (folder / f"{i}.json").write_text(json.dumps(trial))

    def __enter__(self) -> RayProcess:
        """Start it."""
        environment = {**os.environ, **_RAY_ENVIRONMENT, MARK: self.folder.name}
        environment.pop("CLMERGE_PLUGINS", None)  # trials name their plugins by absolute paths
        if cluster_address() is None:
            environment["RAY_AUTH_TOKEN"] = os.urandom(32).hex()  # else Ray writes one into the home folder
        command = [sys.executable, "-m", "bench.execute.ray_process", str(self.folder)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it: ask, wait a moment, kill. A second Ctrl-C while it waits goes straight to killing."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
            self.process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            stops = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
            before = signal.pthread_sigmask(signal.SIG_BLOCK, stops)
            self.process.kill()
            self.process.wait()
            clean_up(self.folder)
            self._alive.release()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def wait(self) -> None:
        """Until it ends, however it does."""
        self.process.wait()

    def errors(self) -> dict[int, str]:
        """Trials that could not run: number and the last line of what went wrong."""
        found = {int(path.stem): path.read_text() for path in self.folder.glob("*.error")}
        return {number: text.strip().splitlines()[-1] for number, text in found.items()}

    def finished(self) -> bool:
        """Whether all trials came to an end (and the process did not just die)."""
        return (self.folder / "done").exists()


def _short_temporary() -> str:
    # A socket's path has at most 107 characters (macOS: 103) and Ray adds some 75.
    folder = tempfile.gettempdir()
    return folder if len(folder) < 12 else "/tmp"


def clean_up(folder: Path) -> None:
    """Kill every process of the job on this machine, and remove what Ray wrote outside the results folder."""
    job = json.loads((folder / "job.json").read_text())
    until = time.monotonic() + 10
    while (ours := _processes(folder.name)) and time.monotonic() < until:
        for process in ours:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(ours, timeout=1)
    shutil.rmtree(job["temporary"], ignore_errors=True)


def clean_up_after_killed(jobs: Path) -> None:
    """The same for jobs whose command line was killed and so could not; their folders go too.

    Args:
        jobs: ``<results>/ray``, with one folder a job.
    """
    for told in jobs.glob("*/job.json"):
        try:
            # Another machine's processes are out of sight: it cleans up there.
            if json.loads(told.read_text())["host"] == socket.gethostname():
                with FileLock(told.parent / ".lock", timeout=0):
                    clean_up(told.parent)
                    shutil.rmtree(told.parent, ignore_errors=True)
        except (Timeout, OSError, ValueError, KeyError):
            continue  # alive, or cleaned up by another command just now


def _processes(job: str) -> list[psutil.Process]:
    """The living processes that carry the job's mark, without this one."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == job and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue  # another user's, or gone
    return [process for process in found if process.pid != os.getpid()]


# ---- the process's own side ------------------------------------------------------------------------------------
def main(folder: Path) -> None:
    """Run all trials through ``ray.tune.Tuner``, as many at once as there is room for."""
    threading.Thread(target=_leave_with_the_command_line, args=(folder,), daemon=True).start()
    job = json.loads((folder / "job.json").read_text())

    import ray
    from ray import tune

    if job["own"] is None:
        ray.init()
    else:
        ray.init(
            address="local",
            num_cpus=job["own"]["cpus"],
            num_gpus=job["own"]["gpus"],
            include_dashboard=False,
            _node_ip_address="127.0.0.1",  # not to be reached from elsewhere, and no matter which network comes or goes
            object_store_memory=80 << 20,  # the least that Ray takes; nothing is passed through it
            _temp_dir=job["temporary"],
        )
    gpus = job["gpus_per_run"]
    if gpus is None:
        gpus = 1.0 if ray.cluster_resources().get("GPU") else 0.0
    cpus = job["threads"] if job["own"] is None else 1  # of our own cluster one CPU is one slot
    tune.Tuner(
        tune.with_resources(_trainable(folder, job["threads"]), {"cpu": cpus, "gpu": gpus}),
        param_space={"trial": tune.grid_search(list(range(job["trials"])))},
        tune_config=tune.TuneConfig(
            # A worker's imports take 6 to 9 s; on a GPU only a process that ends gives its memory back.
            reuse_actors=not gpus,
            max_concurrent_trials=job["workers"],
            trial_dirname_creator=lambda trial: str(trial.config["trial"]),
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder),
            verbose=0,
            # Bounded in the trainable, which knows how many cells died.
            failure_config=tune.FailureConfig(max_failures=-1),
        ),
    ).fit()
    (folder / "done").touch()
    if job["own"] is not None:
        clean_up(folder)  # at once, where Ray's own shutdown takes a second or two
        os._exit(0)


def _trainable(folder: Path, threads: int) -> Any:
    """The function that Tune runs in a worker. A nested one, so that it travels by value and can tell that ``bench``
    cannot be imported there.
    """

    def trainable(config: dict[str, Any]) -> None:
        import json
        import os
        import traceback

        number = config["trial"]
        os.environ["OMP_NUM_THREADS"] = str(threads)
        try:
            spec = json.loads((folder / f"{number}.json").read_text())
            with (folder / f"{number}.starts").open("ab") as file:
                file.write(b".")
                starts = file.tell()
            from bench.execute.trial import run_trial, starts_allowed

            if starts > starts_allowed(spec):
                raise RuntimeError("its process died again and again before it began a run")
            run_trial(spec)
        except Exception:
            (folder / f"{number}.error").write_text(traceback.format_exc())

    return trainable


def _leave_with_the_command_line(folder: Path) -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock a thread must not hold when the interpreter ends
        pass
    clean_up(folder)
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
