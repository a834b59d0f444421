"""``debug import`` from a checkout."""

from debug.commands import run

if __name__ == "__main__":
    run("import", called="python runs/import_results.py")
