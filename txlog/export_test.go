package txlog

// Waiting counts the transactions that the commit loop has not taken yet.
func (l *Log) Waiting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.commits.waiting)
}

// MaxQueueActions is how many file actions may wait.
const MaxQueueActions = maxQueueActions

// Weigh makes the queue think that n more file actions wait.
func (l *Log) Weigh(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.commits.actions += n
}
