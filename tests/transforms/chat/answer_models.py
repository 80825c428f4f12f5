"""Models that schemas are made of, by their import path."""

import datetime
import decimal
import enum
from typing import Literal

from pydantic import BaseModel, Field


class Currency(enum.Enum):
    IDR = "IDR"
    USD = "USD"


class Item(BaseModel):
    name: str
    count: int = Field(ge=0)


class Invoice(BaseModel):
    vendor: str
    total: decimal.Decimal
    date: datetime.date
    finished_at: datetime.datetime | None = None
    currency: Currency = Currency.IDR
    status: Literal["paid", "open"] = "open"
    items: list[Item] = []


class Node(BaseModel):
    children: "list[Node]" = []


NOT_A_MODEL = 3
