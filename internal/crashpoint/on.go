//go:build crashpoints

package crashpoint

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// variable arms a point.
const variable = "CARDINAL_CRASHPOINT"

var (
	armed  Point
	passes atomic.Int64 // that are left
)

func init() {
	setting := os.Getenv(variable)
	if setting == "" {
		return
	}
	name, count, _ := strings.Cut(setting, ":")
	n, err := strconv.ParseInt(count, 10, 64)
	if err != nil || n < 1 {
		panic(fmt.Sprintf("%s=%q is not name:n", variable, setting))
	}
	armed = Point(name)
	passes.Store(n)
}

// Here is passed at the point; see the package.
func Here(p Point) {
	if p != armed || passes.Add(-1) != 0 {
		return
	}
	// Nothing can be done about a failure, and the process must not go on.
	_ = syscall.Kill(syscall.Getpid(), syscall.SIGKILL)
	select {}
}
