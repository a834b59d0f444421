"""``debug train`` from a checkout."""

from debug.commands import run

if __name__ == "__main__":
    run("train", called="python runs/train_bundled_model.py")
