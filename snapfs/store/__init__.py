"""A durable transactional object store on LMDB."""
