"""``debug seeds`` from a checkout."""

from debug.commands import run

if __name__ == "__main__":
    run("seeds", called="python runs/find_robust_seeds.py")
