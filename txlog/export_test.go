package txlog

// Waiting counts the transactions that the commit loop has not taken yet.
func (l *Log) Waiting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.commits.waiting)
}
