// Package consistency tests what the readers of a table promise together:
// that PromQL and SQL tell the same of the same version, that a query sees all
// that was acknowledged and nothing twice, and that one pin protects thousands
// of queries from compaction and vacuum.
//
// It stands above everything and holds tests only. Its tests print the figures
// and seeds that they ran with.
package consistency
