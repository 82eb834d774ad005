"""New processes that start with the libraries loaded: their imports, 4 s a process, would be most of a test's time.

Each pytest process has one server that imports the libraries once and forks what is asked for. Nothing runs in the
server itself, so a process starts as clean as a spawned one. The server knows neither nnU-Net nor this package: they
read the environment while they are imported.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
from functools import wraps
from importlib.metadata import entry_points
from multiprocessing import context, forkserver, process, reduction, resource_tracker, spawn
from pathlib import Path
from typing import Any

LIBRARIES = ["torch", "torch._dynamo", "torch.distributed.fsdp", "SimpleITK", "scipy.stats", "skimage.morphology",
             "seaborn", "sklearn.manifold", "blosc2", "nibabel", "pydantic", "batchgenerators", "batchgeneratorsv2",
             "acvl_utils", "dynamic_network_architectures.architectures.unet"]  # fmt: skip
_KNOWN = sys.version_info < (3, 14)  # later versions authenticate the clients of a server
_SHIM = """#!{python}
if __name__ == "__main__":
    import sys

    sys.path[:0] = [{root!r}]
    from tests.preloaded import run_command

    sys.exit(run_command({name!r}, {address!r}))
"""
# A new process reads this before it can import from here; its own processes come from the same server.
_TAKE = """
import os
from multiprocessing.forkserver import _forkserver

os.environ.clear()
os.environ.update(environment)
for number, stream in enumerate(streams, 1):
    os.dup2(stream.detach(), number)
_forkserver.ensure_running = lambda: None
"""


class _Surroundings:
    """Pickled: environment, output and errors of the process that starts another, which takes them as it reads this."""

    def __reduce__(self) -> tuple[Any, ...]:
        streams = [reduction.DupFd(number) for number in (1, 2)]
        return exec, (_TAKE, {"environment": dict(os.environ), "streams": streams})


def prepare() -> None:
    """Let the server of this process, which starts with the first one that it is asked for, make whole processes."""
    multiprocessing.set_forkserver_preload(LIBRARIES)
    data = spawn.get_preparation_data
    spawn.get_preparation_data = lambda name: data(name) | {"surroundings": _Surroundings()}


def start() -> None:
    """Start the server of this process now; it loads the libraries while this process goes on."""
    forkserver._forkserver.ensure_running()  # type: ignore[attr-defined]


def spawned_from_server(on: bool) -> None:
    """Whether the processes that this one spawns from now on come from the server."""
    methods: Any = context._concrete_contexts  # type: ignore[attr-defined]
    methods["spawn"] = methods["forkserver"] if on and _KNOWN else context.SpawnContext()


def loggers_of_nnunet() -> list[Any]:
    """The classes that draw the `progress.png` of nnU-Net, a second an epoch; none if they are not imported."""
    module = sys.modules.get("nnunetv2.training.logging.nnunet_logger")
    return [found for found in vars(module or object).values() if hasattr(found, "plot_progress_png")]


def write_empty_picture(_: Any, folder: str) -> None:
    """In place of `plot_progress_png`: nnU-Net's export of a model wants the file."""
    (Path(folder) / "progress.png").touch()


def write_commands(folder: Path) -> Path:
    """Write the commands of nnU-Net and of this package into a folder for PATH; they run in processes of the server."""
    folder.mkdir()
    start()
    server: Any = forkserver._forkserver  # type: ignore[attr-defined]
    root = str(Path(__file__).parent.parent)
    for script in entry_points(group="console_scripts") if _KNOWN else ():
        if script.name.startswith(("nnUNetv2_", "nnssl_")):
            file, address = folder / script.name, server._forkserver_address
            file.write_text(_SHIM.format(python=sys.executable, root=root, name=script.name, address=address))
            file.chmod(0o755)
    return folder


def run_command(name: str, address: str) -> int:
    """Run a command with the arguments, the environment and the output of this process; returns its exit code."""
    prepare()
    server: Any = forkserver._forkserver  # type: ignore[attr-defined]
    server._forkserver_address, server.ensure_running = address, lambda: None
    server._forkserver_alive_fd = os.open(os.devnull, os.O_WRONLY)
    resource_tracker._resource_tracker._fd = os.open(os.devnull, os.O_WRONLY)  # type: ignore[attr-defined]
    arguments = [str(Path(sys.executable).with_name(name)), *sys.argv[1:]]
    command = multiprocessing.get_context("forkserver").Process(target=_command, args=(name, arguments))
    command.start()
    command.join()
    return int(command.exitcode or 0)


def _shorten_trainings() -> None:
    """Two steps an epoch for nnU-Net's own trainers, which have no variable for it, and no picture of an epoch."""
    for logger in loggers_of_nnunet():
        logger.plot_progress_png = write_empty_picture
    if (module := sys.modules.get("nnunetv2.training.nnUNetTrainer.nnUNetTrainer")) is not None:
        initialise = module.nnUNetTrainer.__init__

        @wraps(initialise)
        def with_short_epochs(self: Any, *arguments: Any, **options: Any) -> None:
            initialise(self, *arguments, **options)
            if type(self).__module__.startswith("nnunetv2."):
                self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 2, 1

        module.nnUNetTrainer.__init__ = with_short_epochs


def _command(name: str, arguments: list[str]) -> None:
    """What the script of a command does, in a process of the server."""
    process._parent_process = None  # type: ignore[attr-defined]  # it is a command's main process
    prepare()
    spawned_from_server(True)
    sys.argv[:] = arguments
    try:
        import nnssl  # noqa: F401 - as the start-up line does

        (script,) = entry_points(group="console_scripts", name=name)
        main = script.load()
        _shorten_trainings()
        sys.exit(main())
    except Exception:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()
