// Goroutines that are interrupted all the time: by the runtime, which preempts them by signals and looks at where they
// are, by signals of their own, by panics and faults. Every call's result is known.
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

const rounds = 300

// fault panics, by a bad pointer, an index or a call, and says whether it was caught.
func fault(kind int) (caught bool) {
	defer func() { caught = recover() != nil }()
	switch kind % 3 {
	case 0:
		var missing *int
		*missing = kind
	case 1:
		_ = make([]int, 1)[kind]
	default:
		panic(kind)
	}
	return false
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	if len(os.Args) > 1 {
		fmt.Print(os.Getppid())
		return
	}
	runtime.GOMAXPROCS(4)
	var stop atomic.Bool
	var spinning, group sync.WaitGroup
	var faults, calls, signals atomic.Int64

	// A profile's timer interrupts whatever runs, and walks its stack.
	check(pprof.StartCPUProfile(io.Discard))
	caught := make(chan os.Signal, 1024)
	signal.Notify(caught, syscall.SIGUSR1)
	for range 2 {
		spinning.Add(1)
		go func() {
			defer spinning.Done()
			for !stop.Load() {
			}
		}()
	}
	spinning.Add(1)
	go func() {
		defer spinning.Done()
		stacks := make([]byte, 1<<16)
		for !stop.Load() {
			check(syscall.Kill(os.Getpid(), syscall.SIGUSR1))
			<-caught
			signals.Add(1)
			if !strings.Contains(string(stacks[:runtime.Stack(stacks, true)]), "goroutine") {
				panic("no stacks")
			}
		}
	}()

	parent, directory := os.Getppid(), "/tmp/signals-go"
	check(os.MkdirAll(directory, 0o777))
	for n := range 8 {
		group.Add(1)
		go func() {
			defer group.Done()
			if n%2 == 0 {
				runtime.LockOSThread()
			}
			path, buffer := fmt.Sprint(directory, "/", n), make([]byte, 64)
			file, err := os.Create(path)
			check(err)
			defer file.Close()
			reader, writer, err := os.Pipe()
			check(err)
			for round := range rounds {
				if fault(n + round) {
					faults.Add(1)
				}
				line := fmt.Sprintf("%d %d\n", n, round)
				_, err = file.WriteAt([]byte(line), 0)
				check(err)
				length, err := file.ReadAt(buffer[:len(line)], 0)
				check(err)
				_, err = writer.Write(buffer[:length])
				check(err)
				length, err = reader.Read(buffer)
				check(err)
				if string(buffer[:length]) == line && os.Getppid() == parent {
					calls.Add(1)
				}
			}
		}()
	}

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	go http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, strings.Repeat("x", 5000))
	}))
	var bytes atomic.Int64
	for range 4 {
		group.Add(1)
		go func() {
			defer group.Done()
			for range 50 {
				answer, err := http.Get("http://" + listener.Addr().String())
				check(err)
				body, err := io.ReadAll(answer.Body)
				check(err)
				answer.Body.Close()
				bytes.Add(int64(len(body)))
			}
		}()
	}
	children := 0
	for range 5 {
		out, err := exec.Command("/proc/self/exe", "child").Output()
		check(err)
		if string(out) == fmt.Sprint(os.Getpid()) {
			children++
		}
	}
	group.Wait()
	stop.Store(true)
	spinning.Wait()
	pprof.StopCPUProfile()
	fmt.Println(faults.Load(), calls.Load(), bytes.Load(), children, signals.Load() > 0)
}
