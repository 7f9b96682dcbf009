package local

// SetStep lets a test see, and break, each step of a write.
func (s *Store) SetStep(step func(name string) error) { s.step = step }

// Names that tests look for.
const (
	HiddenDir  = hiddenDir
	TempDir    = tempDir
	LockFile   = lockFile
	TempMaxAge = tempMaxAge
)
