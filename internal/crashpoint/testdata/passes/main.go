// Command passes passes a crash point five times and counts. With an argument
// it sends itself SIGUSR1 after the second.
package main

import (
	"fmt"
	"os"
	"syscall"
	"time"

	"cardinalsin/internal/crashpoint"
)

func main() {
	for i := 1; i <= 5; i++ {
		crashpoint.Here(crashpoint.Uploaded)
		if _, err := fmt.Fprint(os.Stdout, i); err != nil {
			os.Exit(1)
		}
		if i == 2 && len(os.Args) > 1 {
			if err := syscall.Kill(os.Getpid(), syscall.SIGUSR1); err != nil {
				os.Exit(1)
			}
			time.Sleep(100 * time.Millisecond) // for the signal to be heard
		}
	}
}
