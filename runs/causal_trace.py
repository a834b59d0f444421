"""``debug trace`` from a checkout."""

from debug.commands import run

if __name__ == "__main__":
    run("trace", called="python runs/causal_trace.py")
