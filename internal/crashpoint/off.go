//go:build !crashpoints

package crashpoint

// Here is passed at the point; see the package.
func Here(Point) {}
