# A real Ray cluster of two raylets on this machine, one of which is killed in the middle of prepare-data.
# Entry points: `python test/data/two_raylets.py FOLDER` with the extra `cluster`; prints what it found, exit code 1
# where a row differs. Not a test file: a minute and half a gigabyte. Its figures are in docs/scale.md.
# Every file is read by a task of its own; the raylet that holds one of the two processors dies in the middle of one.
"""prepare-data on two raylets, one killed."""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ray
from datatrove.executor.ray import RayTaskManager
from ray.cluster_utils import Cluster

sys.path.insert(0, str(Path(__file__).parents[1]))

from data.material import QUIET, configuration, write_rows  # noqa: E402
from data.storage_material import rows_in  # noqa: E402

from hildanext.data.prepare import prepare  # noqa: E402

FILES, DOCUMENTS, REPORTS = 8, 20000, 2


def raw(folder: Path) -> Path:
    """Files of random words; some documents are in two of them."""
    rng = random.Random(0)
    words = [f"word{number}" for number in range(400)]
    for file in range(FILES):
        texts = [" ".join(rng.choices(words, k=200)) for _ in range(DOCUMENTS)]
        write_rows(folder / f"{file:02d}.jsonl", [{"text": text} for text in [*texts, "the same in every file"]])
    return folder


def count_lost() -> list[int]:
    """The tasks that datatrove hands out again from now on."""
    lost, done = list[int](), RayTaskManager.task_done

    def counting(self: Any, task: Any) -> Any:
        success, again = done(self, task)
        lost.extend(again or ())
        return success, again

    RayTaskManager.task_done = counting  # type: ignore[method-assign]
    return lost


def in_a_task(raylet: int) -> bool:
    """Whether a process below the raylet is writing a unit."""
    below, found = {raylet}, False
    for entry in sorted(int(path.name) for path in Path("/proc").glob("[0-9]*")):
        try:
            parent = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
            if parent in below:
                below.add(entry)
                found |= any(
                    str(file.readlink()).endswith("/job.jsonl") for file in Path(f"/proc/{entry}/fd").iterdir()
                )
        except OSError:  # it has ended
            continue
    return found


def kill_when_begun(cluster: Cluster, node: Any, parts: Path, told: dict[str, Any]) -> None:
    """Kill a raylet when some reports are there and it is in the middle of a task."""
    raylet = node.all_processes["raylet"][0].process.pid
    while len(found := list(parts.glob("processed/.set.parts-*/*.json"))) < REPORTS or not in_a_task(raylet):
        time.sleep(0.02)
    told["done"], told["at"] = len(found), time.monotonic()
    cluster.remove_node(node, allow_graceful=False)


def main(root: Path) -> int:
    """Compare the cluster's rows with the process pool's."""
    source = [{"type": "jsonl", "path": str(raw(root / "raw"))}]
    prepare(configuration(root / "pool", source), QUIET)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100 << 20})
    second = cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    nodes, told, begun, lost = len(ray.nodes()), {}, time.monotonic(), count_lost()
    threading.Thread(target=kill_when_begun, args=(cluster, second, root / "ray", told), daemon=True).start()
    settings = {"type": "ray", "memory_gb": 0.2}
    manifest = prepare(configuration(root / "ray", source, executor=settings), QUIET)
    seconds, alive = time.monotonic() - begun, sum(node["Alive"] for node in ray.nodes())
    same = rows_in(root / "pool") == rows_in(root / "ray")
    print(json.dumps({
        "raylets": nodes, "alive at the end": alive, "reports when it was killed": told.get("done"),
        "seconds": round(seconds, 1), "seconds after the kill": round(time.monotonic() - told.get("at", begun), 1),
        "tasks lost and run again": lost, "documents": manifest["documents"], "rows are the pool's": same,
    }, indent=1))  # fmt: skip
    ray.shutdown()
    cluster.shutdown()
    return 0 if same and alive == 1 and lost else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
