"""`python -m underpass.lab`: the lab's commands without the rest of the command line."""

from underpass.lab.cli import app

if __name__ == "__main__":
    app(prog_name="underpass lab")
