"""Exports of a version for other tools: stock FAISS, clip-retrieval, pgvector."""
