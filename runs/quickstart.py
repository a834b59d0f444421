"""``debug demo`` from a checkout."""

from debug.commands import run

if __name__ == "__main__":
    run("demo", called="python runs/quickstart.py")
