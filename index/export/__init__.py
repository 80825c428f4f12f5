"""A version as other tools want it: stock FAISS files, clip-retrieval, pgvector."""
