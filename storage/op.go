package storage

// Op names one kind of call on a [Store], for faults, meters and traces.
type Op string

// The calls of [Store].
const (
	OpGet         Op = "get"
	OpGetRange    Op = "get_range"
	OpPut         Op = "put"
	OpPutIfAbsent Op = "put_if_absent"
	OpPutIfMatch  Op = "put_if_match"
	OpList        Op = "list"
	OpDelete      Op = "delete"
	OpNow         Op = "now"
)

// Ops holds every Op, in the order of the methods of [Store].
var Ops = []Op{OpGet, OpGetRange, OpPut, OpPutIfAbsent, OpPutIfMatch, OpList, OpDelete, OpNow}

// Writes reports whether the call may change the store, so that a lost
// response leaves its outcome unknown.
func (op Op) Writes() bool {
	switch op {
	case OpPut, OpPutIfAbsent, OpPutIfMatch, OpDelete:
		return true
	}
	return false
}
