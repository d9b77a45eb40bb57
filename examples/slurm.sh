#!/bin/bash
# SimCLR under Slurm, on any number of nodes and for longer than the time limit: two minutes before the time is up all
# processes save after the same step, the job goes back into the queue, and the same command goes on from there.
#
#     sbatch --nodes=2 --time=24:00:00 examples/slurm.sh --data DIR
#
# Submit in the root of the checkout, with the Python environment active: jobs inherit both. Not with --resume never,
# which would begin anew each time.

#SBATCH --job-name=simclr
#SBATCH --nodes=1
# A process for each GPU, and the cores that read images for it.
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=12:00:00
# To the processes, not to this script. A step and a checkpoint must fit into these seconds.
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=simclr-%j.log

set -u
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))

# Without torchrun: srun starts a process for each GPU just as well, and ends with their exit code. torchrun ends with 1
# whatever they do, and kills them 30 s after it was asked to stop.
# The GPUs and cores of a node are seen by all its processes, which share them out by LOCAL_RANK and LOCAL_WORLD_SIZE.
# When one process is gone the others, which wait for it, have a minute.
srun --cpu-bind=none --gpu-bind=none --kill-on-bad-exit=0 --wait=60 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID
    export WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
    exec python examples/simclr_imagenet.py "$@"
' slurm.sh "$@"
code=$?

case $code in
    138 | 143) scontrol requeue "$SLURM_JOB_ID" ;; # asked to stop by SIGUSR1 or SIGTERM, and has saved
esac
exit "$code"
