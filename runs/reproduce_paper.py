"""``debug paper`` from a checkout."""

from debug.commands import run

if __name__ == "__main__":
    run("paper", called="python runs/reproduce_paper.py")
