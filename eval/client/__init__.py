"""The robot's side of a policy server; numpy only, and the syntax of Python 3.8.

Others use ``remote.RemotePolicy`` (asks a server), ``episode.EpisodeClient`` (drives an
environment by its profile), the errors of ``remote`` and ``transports``, and ``transcripts``.
"""
