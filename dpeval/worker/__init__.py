"""One rank. Start reading at :mod:`dpeval.worker.loop`."""
