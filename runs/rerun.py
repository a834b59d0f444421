"""``debug rerun`` from a checkout."""

from debug.commands import run

if __name__ == "__main__":
    run("rerun", called="python runs/rerun.py")
