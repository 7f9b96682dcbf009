// Command passes passes a crash point five times and counts.
package main

import (
	"fmt"
	"os"

	"cardinalsin/internal/crashpoint"
)

func main() {
	for i := 1; i <= 5; i++ {
		crashpoint.Here(crashpoint.Uploaded)
		if _, err := fmt.Fprint(os.Stdout, i); err != nil {
			os.Exit(1)
		}
	}
}
