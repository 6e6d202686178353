//! parquet_file.
