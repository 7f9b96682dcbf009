// Package golden reads Delta tables that other engines wrote and compares
// what we see with manifests that a third program computed.
//
// It stands on the top layer and holds tests only. The tables lie outside the
// project, in the folder that CARDINAL_GOLDEN names (default
// ../shared/golden from the project's root), which is only ever read: no pin,
// no lock, no file. Without the folder the tests skip and say so.
//
// The folder's format, tab-separated with a header line each:
//
//	MANIFEST.tsv  one row a table: latest version, active files, tombstones,
//	              bytes, deletion vectors, txn and domain counts, protocol,
//	              rows where known, and a note. A note with MUST_FAIL names a
//	              table that a correct reader refuses; one that says that
//	              metaData, protocol or commits are missing means the same.
//	ACTIVE.tsv    the files of each table at its latest version
//	VERSIONS.tsv  each version that can be read
//	<table>/../expected/**.parquet or <table>/expected: the rows, where known
//
// A row of the manifest that ends in .tar.zst is an archive, which is unpacked
// into a temporary directory.
package golden
