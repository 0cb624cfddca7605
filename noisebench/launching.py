"""Starts the ranks of a run on this machine, where neither torchrun nor Slurm did."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from noisebench.executors import MAX_DEATHS
from noisebench.local_executor import follow_parent, hidden_main
from noisebench.seats import Seat, take


class RankDied(Exception):
    """A rank ended without a word: killed, say. The message is one line."""


def launch(
    work: Callable[..., Any], ranks: int, *args: Any, ends: Callable[[Any], bool] = lambda _: False
) -> list[Any]:
    """What ``work(*args)`` gives on each of so many processes of this machine; the others end with one that dies.

    They end with this process too, whatever way it ends, and meet where no other machine can.

    Args:
        work: a function at the top of a module.
        ranks: how many.
        ends: whether what a rank gave ends the others, which give None then.

    Raises:
        RankDied: one did.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="noisebench-") as folder:
        processes: list[Any] = []
        ends_of: dict[Connection, int] = {}
        try:
            for rank in range(ranks):
                ours, theirs = context.Pipe(duplex=False)
                seat = Seat(rank, ranks, rank, ranks, by="noisebench", meeting=str(Path(folder) / "meeting"))
                process = context.Process(target=_sit, args=(work, seat, theirs, args))
                with hidden_main():
                    process.start()
                theirs.close()
                processes.append(process)
                ends_of[ours] = rank
            found: list[Any] = [None] * ranks
            while ends_of:
                ready = wait(list(ends_of))
                for ours in [one for one in ends_of if one in ready]:
                    rank = ends_of.pop(ours)
                    try:
                        found[rank] = ours.recv()
                    except (EOFError, OSError):  # before a word, or within it
                        raise _died(processes, rank) from None
                    if ends(found[rank]):
                        return found
            return found
        finally:  # also of those that have nothing left to do: to wait until Python has tidied up takes seconds
            for process in processes:
                process.terminate()
            for process in processes:
                process.join(10)
                if process.is_alive():
                    process.kill()
                    process.join()


def launch_again(
    report: Callable[[str], None], work: Callable[..., Any], ranks: int, *args: Any, **options: Any
) -> Any:
    """`launch`, anew after each death, which is reported; `work` has to know where to go on.

    Raises:
        RankDied: at the third.
    """
    for left in reversed(range(MAX_DEATHS)):
        try:
            return launch(work, ranks, *args, **options)
        except RankDied as error:
            report(str(error))
            if not left:
                raise RankDied(
                    f"{error}, as did one {MAX_DEATHS - 1} times before (out of memory? see log.txt and dmesg)"
                ) from None


def _died(processes: list[Any], rank: int) -> RankDied:
    """Of several that ended, the one that was killed is to blame: the others ended when it no longer answered."""
    for process in processes:
        process.join(1)
    killed = [i for i, process in enumerate(processes) if (process.exitcode or 0) < 0]
    rank = rank if not killed or rank in killed else killed[0]
    code = processes[rank].exitcode
    how = f"was killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with code {code}"
    return RankDied(f"the process of rank {rank} {how}")


def _sit(work: Callable[..., Any], seat: Seat, answer: Connection, args: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    follow_parent()
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    for backend in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{backend}_SOCKET_IFNAME", loopback)
    take(seat)
    from noisebench.ranks import RankLost

    try:
        answer.send(work(*args))
    except RankLost:  # the log says it, and the process that started this one starts it again
        sys.exit(1)
