"""Arms of `sensitivity.yaml`: all are SASFT as in `code_switching.yaml`."""

from code_switching_arms import Bench as Bench
from code_switching_arms import Trained as Trained
from code_switching_arms import make as make
