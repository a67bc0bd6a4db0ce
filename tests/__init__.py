import os

# Before numpy is loaded. Threads of OpenBLAS wait for each other by spinning: on two cores that all processes
# of a run share, to fit a model took twelve times the processor time.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
