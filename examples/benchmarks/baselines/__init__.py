"""What push-sum is compared with, each in one small file on mpi4py, numpy and torch: nothing of the library is used.

    d_psgd      Decentralized parallel SGD (Lian et al. 2017): pairs of ranks swap models while they compute
    ad_psgd     Asynchronous decentralized parallel SGD (Lian et al. 2018): a second thread averages with random peers
    local_sgd   Local SGD: everybody averages every few steps
    ddp         DistributedDataParallel as it is, and with torch's own ways to send less

tests/examples/test_baselines.py holds each of them to a closed form or to the algorithm in plain numpy.
"""
