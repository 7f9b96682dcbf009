package s3server

import "syscall"

// processAttributes keep a Ctrl-C at the terminal from the server, which we
// then stop in order, and end it if we die without doing so.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
