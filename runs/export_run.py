"""``debug export`` from a checkout."""

from debug.commands import run

if __name__ == "__main__":
    run("export", called="python runs/export_run.py")
