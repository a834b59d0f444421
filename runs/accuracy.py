"""``debug accuracy`` from a checkout."""

from debug.commands import run

if __name__ == "__main__":
    run("accuracy", called="python runs/accuracy.py")
