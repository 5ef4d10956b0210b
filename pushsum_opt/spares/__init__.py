"""Processes that wait until a rank is lost, and then take its place.

A job of n + s processes has n ranks that train and s spares. The last s processes of ``MPI.COMM_WORLD`` are the spares.
A spare runs the script like every rank, up to the point at which that first asks which rank it is. There it waits. It
and the ranks that train talk by small messages over ``MPI.COMM_WORLD``, which is used for nothing else then.

Nothing here is imported where a job has no spares.
"""
