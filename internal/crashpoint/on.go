//go:build crashpoints

package crashpoint

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// variable arms a point.
const variable = "CARDINAL_CRASHPOINT"

var (
	point  Point
	armed  atomic.Bool
	passes atomic.Int64 // that are left
)

func init() {
	setting := os.Getenv(variable)
	if setting == "" {
		return
	}
	fields := strings.Split(setting, ":")
	if len(fields) < 2 || len(fields) > 3 || len(fields) == 3 && fields[2] != "SIGUSR1" {
		panic(fmt.Sprintf("%s=%q is not name:n or name:n:SIGUSR1", variable, setting))
	}
	n, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil || n < 1 {
		panic(fmt.Sprintf("%s=%q has no number of passes", variable, setting))
	}
	point = Point(fields[0])
	passes.Store(n)
	if len(fields) == 2 {
		armed.Store(true)
		return
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1)
	go func() {
		<-signals
		armed.Store(true)
	}()
}

// Here is passed at the point; see the package.
func Here(p Point) {
	if !armed.Load() || p != point || passes.Add(-1) != 0 {
		return
	}
	// Nothing can be done about a failure, and the process must not go on.
	_ = syscall.Kill(syscall.Getpid(), syscall.SIGKILL)
	select {}
}
