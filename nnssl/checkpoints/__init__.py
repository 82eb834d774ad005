"""Finished pretrainings: which RUN is meant, what its checkpoint holds, and how its weights are loaded."""
