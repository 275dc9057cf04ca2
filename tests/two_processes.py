"""`iqguide` in two processes, as torchrun starts them on CPUs, and what each of them did."""

import json
import os
import subprocess
import sys
from pathlib import Path

COMMAND = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def in_two(folder, *arguments, **environment):
    """Run the command -> the finished process, and by process: how many there were, and what it drew and scored."""
    notes = folder / "notes"
    notes.mkdir(exist_ok=True)
    for old in notes.iterdir():
        old.unlink()
    done = subprocess.run(
        [*COMMAND, __file__, str(notes), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"} | environment,
    )
    return done, [json.loads(path.read_text()) for path in sorted(notes.iterdir())]


def main(notes, *arguments):
    """One process: `iqguide`, whose seeds and pictures are noted on the way."""
    from accelerate import PartialState

    from iqguide import cli
    from iqguide.cli import sample as cli_sample
    from iqguide.training import evaluate

    draw, read, drawn, scored = cli_sample.draw, evaluate.load_images, [], []
    cli_sample.draw = lambda pipe, reward, seeds, **how: drawn.extend(seeds) or draw(pipe, reward, seeds, **how)
    evaluate.load_images = lambda path: scored.append(path.name) or read(path)
    status = cli.main(list(arguments))
    if status == 0:
        state = PartialState()
        note = {"processes": state.num_processes, "drawn": drawn, "scored": scored}
        Path(notes, f"{state.process_index}.json").write_text(json.dumps(note))
    sys.exit(status)


if __name__ == "__main__":
    main(*sys.argv[1:])
