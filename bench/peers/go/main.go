// A tuned Go worker: amqp091 and kept net/smtp connections, one goroutine for each.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	html "html/template"
	"log"
	"mime/multipart"
	"mime/quotedprintable"
	"net/smtp"
	"net/textproto"
	"os"
	"regexp"
	"strconv"
	"strings"
	text "text/template"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

type job struct {
	JobID    string `json:"jobId"`
	Email    string `json:"email"`
	Otp      string `json:"otp"`
	Metadata struct {
		UserName      string `json:"userName"`
		ExpiryMinutes int    `json:"expiryMinutes"`
	} `json:"metadata"`
}

type given struct {
	Otp, UserName string
	ExpiryMinutes int
}

var address = regexp.MustCompile(`^[^@\s<>]+@[^@\s<>]+\.[^@\s<>]+$`)
var names = strings.NewReplacer("{{ otp }}", "{{.Otp}}", "{{ userName }}", "{{.UserName}}",
	"{{ expiryMinutes }}", "{{.ExpiryMinutes}}")

func template(name string) string {
	content, err := os.ReadFile(os.Getenv("TEMPLATES") + "/" + name)
	if err != nil {
		log.Fatal(err)
	}
	return names.Replace(string(content))
}

var plain = text.Must(text.New("text").Parse(template("otp.txt")))
var rich = html.Must(html.New("html").Parse(template("otp.html")))

func message(it job) ([]byte, error) {
	data := given{it.Otp, it.Metadata.UserName, it.Metadata.ExpiryMinutes}
	var out bytes.Buffer
	parts := multipart.NewWriter(&out)
	fmt.Fprintf(&out, "From: <no-reply@example.com>\r\nTo: <%s>\r\nSubject: Your one-time code\r\nDate: %s\r\n"+
		"Message-ID: <%s@example.com>\r\nMIME-Version: 1.0\r\nContent-Type: multipart/alternative; boundary=%q\r\n\r\n",
		it.Email, time.Now().UTC().Format(time.RFC1123Z), it.JobID, parts.Boundary())
	for _, kind := range []string{"plain", "html"} {
		part, err := parts.CreatePart(textproto.MIMEHeader{
			"Content-Type":              {"text/" + kind + "; charset=utf-8"},
			"Content-Transfer-Encoding": {"quoted-printable"},
		})
		if err != nil {
			return nil, err
		}
		encoder := quotedprintable.NewWriter(part)
		if kind == "plain" {
			err = plain.Execute(encoder, data)
		} else {
			err = rich.Execute(encoder, data)
		}
		if err != nil {
			return nil, err
		}
		encoder.Close()
	}
	parts.Close()
	return out.Bytes(), nil
}

func send(client *smtp.Client, it job) error {
	content, err := message(it)
	if err != nil {
		return err
	}
	if err = client.Mail("no-reply@example.com"); err != nil {
		return err
	}
	if err = client.Rcpt(it.Email); err != nil {
		return err
	}
	writer, err := client.Data()
	if err != nil {
		return err
	}
	if _, err = writer.Write(content); err != nil {
		return err
	}
	return writer.Close()
}

func work(deliveries <-chan amqp.Delivery) {
	client, err := smtp.Dial("127.0.0.1:" + os.Getenv("SMTP_PORT"))
	if err != nil {
		log.Fatal(err)
	}
	for delivery := range deliveries {
		var it job
		if json.Unmarshal(delivery.Body, &it) != nil || !address.MatchString(it.Email) || send(client, it) != nil {
			delivery.Nack(false, false)
			continue
		}
		delivery.Ack(false)
	}
}

func main() {
	pool, err := strconv.Atoi(os.Getenv("POOL"))
	if err != nil {
		log.Fatal(err)
	}
	connection, err := amqp.Dial(os.Getenv("AMQP_URL"))
	if err != nil {
		log.Fatal(err)
	}
	channel, err := connection.Channel()
	if err != nil {
		log.Fatal(err)
	}
	channel.Qos(4*pool, 0, false)
	deliveries, err := channel.Consume(os.Getenv("QUEUE"), "", false, false, false, false, nil)
	if err != nil {
		log.Fatal(err)
	}
	for range make([]struct{}, pool) {
		go work(deliveries)
	}
	select {}
}
