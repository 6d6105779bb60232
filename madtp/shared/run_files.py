"""The names of the files that a run leaves in its folder."""

BEST, LAST = "checkpoint_best.pth", "checkpoint_last.pth"
CONFIG, ENVIRONMENT = "config.yaml", "environment.txt"  # what was asked for, and what it ran on
LOG, EVALUATION = "log.txt", "evaluate.txt"  # scores and costs, of every epoch and of the last --evaluate
SAID, LOCK = "train.log", "run.lock"  # what people were told, and who is writing here
